"""What stands between grpcio and every servicer: `chain.build_interceptors` and the stages it puts together."""
