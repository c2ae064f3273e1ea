"""What several test modules share: no test imports from another one."""
