import argparse


class TrainArgs:
    @staticmethod
    def parse_args():
        parser = argparse.ArgumentParser(description="One run of the stand-in.")
        parser.add_argument("--config-path", required=True)
        parser.add_argument("--preset-path")
        parser.add_argument("--secrets-path")
        parser.add_argument("--config-value", action="append", dest="config_values", metavar="KEY=VALUE")
        return parser.parse_args()
