"""What makes a run public: the card of each model. Reads run folders, and nothing that trained them."""
