"""What tensorage is measured next to: each peer configured as well as we know how."""
