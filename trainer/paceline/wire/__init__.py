"""The wire: frames of bytes between workers and servers, over TCP with TLS 1.3 unless Insecure is asked for."""
