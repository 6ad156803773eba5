"""For agents: the page, its evidence and its trials as tools of the Model Context Protocol."""
