"""Runs of `lit-prune fit`, a YAML file each, which `--config NAME` finds by its bare name."""
