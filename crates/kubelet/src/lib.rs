//! The node agent: pod workers, probes, volumes, status, node HTTP server.
