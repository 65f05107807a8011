"""Peers that tensorage is compared with, each configured as well as we know how."""
