"""The lab: boot a real kernel in an emulator and run one command inside it."""
