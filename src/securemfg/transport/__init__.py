"""TLS 1.3: contexts, clients, enforcement, certificates, servers, probe. The face is `securemfg.tls`."""
