"""HTTP/1.1 on sockets: heads, bodies, replies, connections, and the streams they turn into."""
