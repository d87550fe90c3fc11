def configure_hub(token="", offline_mode=False, cache_dir="", on_status=None):
    """Nothing of the stand-in's is on Hugging Face."""
    del token, offline_mode, cache_dir, on_status
