"""What a run needs before it is started: memory, disk, time. Imports no torch; docs/plan.md has the formulas."""
