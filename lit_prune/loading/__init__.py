"""Models by name, onto devices and processes, from files that may be damaged or hostile.

Nothing is imported here: `import lit_prune` passes through, and must not wait for torch.
"""
