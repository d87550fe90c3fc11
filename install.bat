@echo off
rem Installs the plugin into OneTrainer's own environment, enables it and checks it: double-click, or
rem   install.bat [OneTrainer's folder]          install.bat --help
rem All it does is to find a Python for onetrainer_ema_select\installer, which does the rest.

rem No delayed expansion: it would eat the ! of a path. No blocks: the ) of a path would end one.
setlocal DisableDelayedExpansion
set "RUN="
set "FLAG="

rem OneTrainer's own first: it is the one that is there on every machine that can use this.
set "TRY=%~1\venv\Scripts\python.exe"
call :try
set "TRY=%~2\venv\Scripts\python.exe"
call :try
set "TRY=%ONETRAINER_DIR%\venv\Scripts\python.exe"
call :try
set "TRY=%~dp0..\venv\Scripts\python.exe"
call :try
set "TRY=%~dp0..\..\venv\Scripts\python.exe"
call :try
set "TRY=%~dp0..\OneTrainer\venv\Scripts\python.exe"
call :try
set "TRY=%USERPROFILE%\OneTrainer\venv\Scripts\python.exe"
call :try
for /d %%D in ("%~dp0..\*") do if exist "%%D\scripts\train.py" set "TRY=%%D\venv\Scripts\python.exe" & call :try
set "TRY=python"
call :try
if defined RUN goto found
set "TRY=py"
set "FLAG=-3"
call :try
if defined RUN goto found

echo No Python of version 3.10 or newer was found, OneTrainer's own included. Give OneTrainer's folder after the
echo script's name, in quotes. If it has no venv yet, run its own install.bat first.
set "CODE=1"
goto done

:found
"%RUN%" %FLAG% -I "%~dp0onetrainer_ema_select\installer\__main__.py" %*
set "CODE=%ERRORLEVEL%"

:done
rem Started by a double-click, not from a prompt, the window would close before the result is read.
set "LINE=%CMDCMDLINE:"=%"
if not "%LINE:install.bat=%"=="%LINE%" pause
exit /b %CODE%

:try
if defined RUN exit /b
"%TRY%" %FLAG% -c "import sys; sys.exit(sys.version_info < (3, 10))" >nul 2>nul
if not errorlevel 1 set "RUN=%TRY%"
exit /b
