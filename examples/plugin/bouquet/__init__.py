"""One part of each kind that Graft can be extended with, in one file each; nothing of Graft is changed.

Every module here stands alone: copy the one that is nearest to what you need. The option file of the same kind in
`conf/` names the class or function by `_target_` and gives its arguments.
"""
