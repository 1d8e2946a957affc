"""Two real Socket.IO servers that behave alike, each as a process: python-socketio's, and Node's `socket.io`."""
