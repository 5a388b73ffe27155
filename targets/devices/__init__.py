"""Run and time models on other machines: over ssh, over adb, under emulation."""
