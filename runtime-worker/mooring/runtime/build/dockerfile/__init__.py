"""The Dockerfile language as values: nothing here touches a file or a host."""
