"""A disk that another machine keeps: the client's side of NBD.

Source of all of it: doc/proto.md and doc/uri.md of the NBD project.
"""
