"""How attention is computed and where keys are stored: windows, blocks, masks, buffers. No file here decides what a
method attends to; that is in the papers' files."""
