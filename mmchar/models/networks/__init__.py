"""Networks that no library has: Parti, Muse, Phenaki, Make-A-Video, HSTU and the projectors of multimodal models."""
