"""The demonstration: the whole cycle on a stand-in for OneTrainer."""
