"""One file per upstream, or one row; they never import each other."""
