"""Data only: `control_map.json` maps each technical control to the requirements of each framework."""
