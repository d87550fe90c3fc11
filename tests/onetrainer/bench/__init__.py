"""The test bench for the real OneTrainer: tiny models, configurations, a recording driver, its workers."""
