"""The stages between grpcio and every servicer; `chain.build_interceptors` builds them."""
