"""ublkd: a ublk server. What a target of your own may import is in ``ublkd.target``."""
