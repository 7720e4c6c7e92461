"""The targets that come with ublkd. They enter by the same door as anybody's: entry points."""
