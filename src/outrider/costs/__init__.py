"""What a step costs on this machine: tables, how they are measured, and which machine they belong to."""
