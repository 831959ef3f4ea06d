"""AdminService, one module per topic."""
