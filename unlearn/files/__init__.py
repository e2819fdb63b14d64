"""Files on disk: patches, saliency maps, LoRAs and cached text states."""
