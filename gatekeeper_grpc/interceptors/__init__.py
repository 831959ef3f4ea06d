"""The stages between grpcio and every servicer; `chain.Stages` puts them together."""
