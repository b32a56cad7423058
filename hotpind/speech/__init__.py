"""Speech: clients of the speech engines, voice activity, sentences, WAV and PCM."""
