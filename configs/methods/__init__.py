"""The field's methods, a YAML file each; `lit_prune.methods` reads them."""
