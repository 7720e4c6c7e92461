"""The C engine on plain files and a fake driver: no ublk, no root."""
