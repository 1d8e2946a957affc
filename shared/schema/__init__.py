"""What crosses process boundaries, as typed structs."""
