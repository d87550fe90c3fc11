@echo off
rem Takes the plugin out of OneTrainer again, without a trace: double-click, or
rem   uninstall.bat [OneTrainer's folder]

rem Not called but handed over to: the last line of install.bat is the last of all.
"%~dp0install.bat" --uninstall %*
