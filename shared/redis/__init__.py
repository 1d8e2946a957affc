"""Our Redis link on trio, the keys and the scripts.

The link, from the bottom up: `address` (a URL understood), `failures` (what can go wrong), `wire` (one socket and the
parser), `dialer` (connecting, with pauses), `pipeline` (commands and replies of one connection), and on top what others use:
`link` for commands, `blocking` for commands that block, `subscription` for channels.
"""
