"""What `install.bat`, `install.sh` and their counterparts run: it brings the plugin into OneTrainer and out again.

Needs the standard library alone, since it runs before anything is installed.
"""
