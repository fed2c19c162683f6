"""What the verbs of the command line do: read arguments, call the packages below, say what was written."""
