"""Our Redis link on trio, the keys and the scripts."""
