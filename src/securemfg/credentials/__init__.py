"""Short-lived credentials: leased on first use, renewed while steps use them, revoked when the last has left.

`broker` shares leases between steps; `lease` keeps one fresh; `vault`, `sts` and `secrets_manager` are the services.
"""
