# Serves an exported model without torch:
#   python -m tools.export --checkpoint output/sample/checkpoints/best --output_dir shipped
#   docker build -t labels . && docker run -p 8000:8000 labels
FROM python:3.11-slim
WORKDIR /app
COPY shipped/requirements.txt constraints.txt ./
COPY tools/serve/requirements.txt serve_requirements.txt
RUN pip install --no-cache-dir -r requirements.txt -r serve_requirements.txt -c constraints.txt
COPY engine/run/flags.py engine/run/flags.py
COPY tools/serve tools/serve
COPY shipped shipped
USER nobody
EXPOSE 8000
CMD ["python", "-m", "tools.serve", "shipped", "--host", "0.0.0.0"]
