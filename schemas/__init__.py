"""What travels: records, identity, envelope, the join, and the configuration of a site. No I/O happens in this room."""
