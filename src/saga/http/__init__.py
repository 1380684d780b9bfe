"""An HTTP/1.1 server: connections, requests and replies, and nothing of what they are about."""
