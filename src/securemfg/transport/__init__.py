"""TLS 1.3: policy, contexts, clients, enforcement, certificates, servers, probe. The face is `securemfg.tls`.

policy        what the settings allow            observation   what was seen, and the events about it
contexts      ssl contexts of a policy           clients       httpx clients of a policy
enforcement   the policy for every library       choke, guard  how: TLS handshakes, plain http
certificates  a CA for development               servers       a small TLS 1.3 JSON server
probe         what a server speaks               reasons       why a handshake failed, and what to do
"""
