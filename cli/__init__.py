"""The command line: starts, asks and checks the processes of a gateway; it is the only part that starts processes."""
