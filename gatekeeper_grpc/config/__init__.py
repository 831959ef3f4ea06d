"""What the environment tells this process: its settings, the addresses in them, and how a shell calls it."""
