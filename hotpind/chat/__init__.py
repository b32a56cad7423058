"""Language models: the cloud, servers on the LAN, the local engine, and the router that picks one."""
