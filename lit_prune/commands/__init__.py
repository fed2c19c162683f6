"""What the verbs of the command line do: read arguments, call the rooms below, say what was written."""
