"""How pins find the appliance: mDNS announcements that follow the machine's network interfaces."""
